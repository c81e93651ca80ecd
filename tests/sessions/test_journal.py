"""The journal of a turn, and how what it left is put into the session: through the store, as a daemon uses it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawand.errors import StorageError
from pawand.sessions.journal import Journal
from pawand.sessions.model import Message, Session
from pawand.sessions.store import SessionStore
from pawand.wire import ToolCall, ToolResult


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    made = SessionStore(tmp_path)
    made.open()
    return made


def reopened(store: SessionStore) -> SessionStore:
    """As after a crash: the lock goes with the process, all files stay."""
    store.close()
    made = SessionStore(store.folder)
    made.open()
    return made


def begun(store: SessionStore, *history: str) -> tuple[Session, Journal]:
    """A turn whose user message, the last of `history`, is saved."""
    session = Session.new("s", "m")
    for number, content in enumerate(history):
        session.append(Message(role="assistant" if number % 2 else "user", content=content))
    store.save(session)
    return session, store.open_journal(session)


def token(text: str) -> bytes:
    return b'id: e-1\nevent: token\ndata: {"content":"%b","iteration":1}\n\n' % text.encode()


def said(session: Session) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.interrupted) for message in session.messages]


def call(id: str) -> ToolCall:
    return ToolCall(id, "bash", {"command": "true"})


def result(id: str, text: str) -> Message:
    return Message(role="tool", content=text, tool_result=ToolResult(id, text, True))


def test_what_was_shown_is_recovered_and_stays_recovered(store: SessionStore) -> None:
    _, journal = begun(store, "go")
    journal.write(token("half an "))
    journal.write(token("answer"))
    for _ in range(2):
        store = reopened(store)
        assert said(store.load("s")) == [("user", "go", False), ("assistant", "half an answer", True)]
        assert not list(store.folder.glob("*.journal"))


def test_a_running_turn_is_not_shown_before_it_is_saved(store: SessionStore) -> None:
    session, journal = begun(store, "go")
    journal.write(token("half"))
    assert said(store.load("s")) == [("user", "go", False)]
    store.settle(session, journal)
    assert sorted(os.listdir(store.folder)) == [".lock", "s.json"]


def test_finished_results_are_kept_and_the_others_are_told(store: SessionStore) -> None:
    """Results come in any order; ids may come again in every iteration."""
    _, journal = begun(store, "go")
    journal.write(token("first "))
    journal.message(Message(role="assistant", content="first ", tool_calls=[call("0"), call("1")]))
    journal.message(result("1", "one"))
    journal.message(result("0", "nought"))
    journal.message(Message(role="assistant", content="", tool_calls=[call("0"), call("1"), call("2")]))
    journal.message(result("1", "again"))
    messages = reopened(store).load("s").messages
    assert [message.role for message in messages] == [
        "user",
        *["assistant", "tool", "tool"],
        *["assistant", *["tool"] * 3],
    ]
    assert [message.content for message in messages[2:4]] == ["nought", "one"]
    assert messages[6].content == "again"
    for position, id in ((5, "0"), (7, "2")):
        found = messages[position].tool_result
        assert found is not None
        assert (found.tool_call_id, found.success) == (id, False)
        assert "interrupted before it finished" in messages[position].content


def test_saves_in_the_middle_of_a_turn_are_not_repeated(store: SessionStore) -> None:
    session, journal = begun(store, "go")
    journal.message(session.append(Message(role="assistant", content="a", tool_calls=[call("0")])))
    journal.message(session.append(result("0", "done")))
    store.save(session)
    journal.write(token("b"))
    expected = [("user", "go", False), ("assistant", "a", False), ("tool", "done", False), ("assistant", "b", True)]
    assert said(reopened(store).load("s")) == expected


def test_another_program_that_went_on_with_the_session_takes_nothing_away(store: SessionStore) -> None:
    _, journal = begun(store, "go")
    journal.write(token("seen"))
    other = Session.decode("s", (store.folder / "s.json").read_bytes())
    other.append(Message(role="user", content="q"))
    other.append(Message(role="assistant", content="a"))
    store.save(other)
    expected = [("user", "go", False), ("user", "q", False), ("assistant", "a", False), ("assistant", "seen", True)]
    for _ in range(2):
        store = reopened(store)
        assert said(store.load("s")) == expected


def test_a_recovery_that_is_cut_before_its_end_is_not_done_twice(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is still there although it is in the session; and that one was rewritten and went on."""
    _, journal = begun(store, "old", "old answer", "go")
    journal.write(token("partial"))
    kept = (store.folder / "s.journal").read_bytes()
    store.save(summary := Session.new("s", "m"))
    summary.append(Message(role="user", content="a summary by another program"))
    store.save(summary)
    for more in ("", "next"):
        store = reopened(store)
        session = store.load("s")
        turn = [("user", "go", False), ("assistant", "partial", True)]
        assert said(session)[1:3] == turn
        assert said(session).count(turn[1]) == 1
        if not more:
            session.append(Message(role="user", content="next"))
            store.save(session)
        (store.folder / "s.journal").write_bytes(kept)


def test_a_journal_that_a_full_disk_left_is_read_with_the_session(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, journal = begun(store, "go")
    journal.write(token("seen"))

    def full(_: Session) -> None:
        raise StorageError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", full)
        with pytest.raises(StorageError):
            store.settle(session, journal)
    expected = [("user", "go", False), ("assistant", "seen", True)]
    assert said(store.load("s")) == expected
    assert len(Session.decode("s", (store.folder / "s.json").read_bytes()).messages) == 1
    # the next turn saves it all, and its own journal takes the place of the old one
    session = store.load("s")
    session.append(Message(role="user", content="next"))
    store.save(session)
    store.settle(session, store.open_journal(session))
    assert said(store.load("s")) == [*expected, ("user", "next", False)]
    assert not list(store.folder.glob("*.journal"))


def test_a_settle_that_fails_in_any_way_gives_its_descriptor_back(store: SessionStore) -> None:
    session, journal = begun(store, "go")
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    session._doc["odd"] = deep  # cannot be encoded
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RecursionError):
        store.settle(session, journal)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    journal = store.open_journal(session)
    journal.close()


def test_a_new_session_takes_nothing_over_from_a_deleted_one(store: SessionStore) -> None:
    _, journal = begun(store, "go")
    journal.write(token("secret"))
    (store.folder / "s.json").unlink()
    store.create(Session.new("s", "m"))
    assert said(reopened(store).load("s")) == []


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_what_lies_in_the_journals_place_stops_no_turn(store: SessionStore, kind: str) -> None:
    session = Session.new("s", "m")
    session.append(Message(role="user", content="go"))
    store.save(session)
    path = store.folder / "s.journal"
    match kind:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(store.folder / "s.json")
        case "fifo":
            os.mkfifo(path)
    assert said(store.load("s")) == [("user", "go", False)]
    before = (store.folder / "s.json").read_bytes()
    journal = store.open_journal(session)
    journal.write(token("x"))
    assert (store.folder / "s.json").read_bytes() == before
    store.settle(session, journal)
    assert len(list(store.folder.glob("s.journal.corrupt-*"))) == 1


def test_a_journal_that_is_nested_too_deeply_stops_no_start(store: SessionStore) -> None:
    _, journal = begun(store, "go")
    journal.write(
        b'event: message\ndata: {"role":"assistant","content":"","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n\n"
    )
    store = reopened(store)
    assert said(store.load("s")) == [("user", "go", False)]
    assert len(list(store.folder.glob("s.journal.corrupt-*"))) == 1


def test_a_deleted_session_takes_all_of_it_with_it(store: SessionStore) -> None:
    _, journal = begun(store, "go")
    store.keep_waiting("s", Message(role="user", content="later"))
    store.delete("s")
    assert os.listdir(store.folder) == [".lock"]
    journal.close()


def test_frames_are_in_the_systems_hands_at_once(store: SessionStore) -> None:
    _, journal = begun(store, "go")
    journal.write(token("x"))
    data = (store.folder / "s.journal").read_bytes()
    assert data.endswith(token("x"))
    assert msgspec.json.decode(data.split(b"\n")[1].removeprefix(b"data: "))["at"] == 0
    assert (store.folder / "s.journal").stat().st_mode & 0o777 == 0o600
    journal.close()
