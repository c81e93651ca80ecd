"""The folder of sessions: saved whole or not at all, listed without what is damaged."""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pawand.errors import BadRequestError, ConflictError, NotFoundError, UnavailableError
from pawand.sessions.model import Message, Session
from pawand.sessions.store import DamagedError, SessionStore

WHOLE = Path(__file__).with_name("rust_session.json").read_bytes()
OLD = time.time() - 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    found = SessionStore(tmp_path / "state" / "sessions")
    found.open()
    yield found
    found.close()


def a_session(id: str, text: str = "hello") -> Session:
    session = Session.new(id, "m")
    session.append(Message(role="user", content=text))
    return session


def put(store: SessionStore, name: str, data: bytes = WHOLE, mtime: float = OLD) -> Path:
    file = store.folder / name
    file.write_bytes(data)
    os.utime(file, (mtime, mtime))
    return file


# --- one session ----------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(store: SessionStore) -> None:
    session = a_session("a", "é")
    store.save(session)
    session.append(Message(role="assistant", content="hi"))
    store.save(session)
    assert [m.content for m in store.load("a").messages] == ["é", "hi"]
    assert store.load("a").encode() == session.encode() == (store.folder / "a.json").read_bytes()


def test_a_folder_that_all_may_read_is_made_private(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o755)
    store = SessionStore(folder)
    store.open()
    assert folder.stat().st_mode & 0o777 == 0o700
    store.close()


def test_files_and_folders_are_private(store: SessionStore) -> None:
    before = os.umask(0)
    try:
        store.save(a_session("a"))
        SessionStore(store.folder.parent / "x" / "y").open()
    finally:
        os.umask(before)
    folders = [store.folder, store.folder.parent, store.folder.parent / "x", store.folder.parent / "x" / "y"]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    assert {file.stat().st_mode & 0o777 for file in store.folder.iterdir()} == {0o600}
    assert sorted(file.name for file in store.folder.iterdir()) == [".lock", "a.json"]


def test_create_does_not_replace(store: SessionStore) -> None:
    store.create(a_session("a", "first"))
    with pytest.raises(ConflictError, match="session a exists already"):
        store.create(a_session("a", "second"))
    assert store.load("a").title == "first"


def test_delete(store: SessionStore) -> None:
    store.save(a_session("a"))
    put(store, "damaged.json", b"{")
    store.delete("a")
    store.delete("damaged")
    assert store.list() == []
    for id in ("a", "damaged"):
        with pytest.raises(NotFoundError, match=f"no session {id}"):
            store.delete(id)


@pytest.mark.parametrize("call", [SessionStore.load, SessionStore.load_or_none, SessionStore.delete])
def test_an_id_that_is_a_path_touches_nothing(store: SessionStore, call: Callable[[SessionStore, str], object]) -> None:
    outside = store.folder.parent / "outside.json"
    outside.write_bytes(WHOLE)
    with pytest.raises(BadRequestError, match="bad session id"):
        call(store, "../outside")
    assert outside.read_bytes() == WHOLE


def test_a_session_is_called_as_its_file(store: SessionStore) -> None:
    put(store, "other.json")
    assert store.load("other").id == "other"
    assert [row.id for row in store.list()] == ["other"]


# --- damage ---------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        folder = os.open(path.parent, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(WHOLE[:-5]),
    "not UTF-8": lambda path: path.write_bytes(WHOLE.replace(b"Done.", b"\xff")),
    "wrong type": lambda path: path.write_bytes(WHOLE.replace(b'"Done."', b"null")),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to(Path(__file__).with_name("rust_session.json")),
    "fifo": lambda path: os.mkfifo(path),
    "socket": _socket,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_told_left_out_and_moved_aside_once_it_is_still(
    store: SessionStore, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    path = store.folder / "bad.json"
    damage(path)
    store.save(a_session("good"))
    with pytest.raises(DamagedError, match="session bad cannot be read: "):
        store.load("bad")
    assert [[row.id for row in store.list()] for _ in range(3)] == [["good"]] * 3
    (warning,) = caplog.messages
    assert warning.startswith("left out of the listing: session bad cannot be read: ")

    with pytest.raises(UnavailableError, match=r"session bad cannot be read: .* try again in a moment") as caught:
        store.load_or_none("bad")
    assert caught.value.retry_after == 5
    assert os.path.lexists(path)

    os.utime(path, (OLD, OLD), follow_symlinks=False)
    before = path.lstat()
    assert store.load_or_none("bad") is None
    assert not os.path.lexists(path)
    (aside,) = store.folder.glob("bad.json.corrupt-*")
    assert os.path.samestat(aside.lstat(), before)
    assert re.fullmatch(r"session bad cannot be read: .*; moved aside to bad\.json\.corrupt-\d+", caplog.messages[-1])
    store.create(a_session("bad"))
    assert store.load("bad").title == "hello"


def test_a_file_from_the_future_does_not_wait_for_its_time(store: SessionStore) -> None:
    put(store, "bad.json", b"", time.time() + 3600)
    assert store.load_or_none("bad") is None


def test_a_file_that_somebody_is_writing_is_read_when_it_is_whole(store: SessionStore) -> None:
    path = put(store, "a.json", WHOLE[:100])
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init()
    libc.inotify_add_watch(watch, bytes(path), 0x10)  # IN_CLOSE_NOWRITE: the first read is over

    def finish_after_the_first_read() -> None:
        os.read(watch, 4096)
        path.write_bytes(WHOLE)

    writer = threading.Thread(target=finish_after_the_first_read)
    writer.start()
    try:
        assert len(store.load("a").messages) == 4
    finally:
        writer.join(10)
        os.close(watch)


def test_a_missing_session_is_told_at_once(store: SessionStore) -> None:
    with pytest.raises(NotFoundError, match="no session nope") as caught:
        store.load("nope")
    assert type(caught.value) is NotFoundError
    assert store.load_or_none("nope") is None


# --- listing --------------------------------------------------------------------------------------


def dated(updated: str, title: str = "Fix the test") -> bytes:
    doc = json.loads(WHOLE)
    doc["messages"][0]["content"] = title
    return json.dumps(doc | {"updated_at": updated}).encode()


def test_newest_first_whatever_the_offset(store: SessionStore) -> None:
    put(store, "b.json", dated("2026-04-14T12:00:00+00:00"))
    put(store, "c.json", dated("2026-04-14T13:00:00+02:00"))
    put(store, "a.json", dated("2026-04-14T12:00:00.000001999Z"))
    put(store, "d.json", dated("2026-04-14T12:00:01.123456789+00:00"))
    assert [row.id for row in store.list()] == ["d", "a", "b", "c"]


def test_only_changed_files_are_read_again(store: SessionStore) -> None:
    time_ = "2026-04-14T12:00:00Z"
    put(store, "a.json", dated(time_, "one"))
    put(store, "b.json", dated(time_, "one"))
    assert {row.title for row in store.list()} == {"one"}
    put(store, "a.json", dated(time_, "two"))  # same size and time: it cannot be seen to have changed
    put(store, "b.json", dated(time_, "two"), OLD + 1)
    assert {row.id: row.title for row in store.list()} == {"a": "one", "b": "two"}
    put(store, "a.json", dated(time_, "three"))
    (store.folder / "b.json").unlink()
    assert {row.id: row.title for row in store.list()} == {"a": "three"}


def test_files_with_other_names_are_skipped(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("good.json", "-bad.json", ".json", "a.b.json", "note.txt", "good.json.corrupt-1", ".tmp-x"):
        put(store, name)
    assert [[row.id for row in store.list()] for _ in range(2)] == [["good"]] * 2
    assert sorted(caplog.messages) == [
        f"skipped {name} in {store.folder}: its name is no session id" for name in ("-bad.json", ".json", "a.b.json")
    ]


@pytest.mark.slow
def test_ten_thousand_sessions_are_listed_fast(store: SessionStore) -> None:
    for number in range(10_000):
        (store.folder / f"s{number}.json").write_bytes(WHOLE)
    assert len(store.list()) == 10_000
    times = []
    for _ in range(3):
        began = time.perf_counter()
        store.list()
        times.append(time.perf_counter() - began)
    assert min(times) < 0.3, times
